"""Classification networks that no library has as they were published: written here, one family per module."""
