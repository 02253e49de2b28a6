"""Classification networks as feature pyramids."""
