"""GDAL's cache of decoded blocks, held to what open files need."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class BlockCache:
    """GDAL's cache of decoded blocks, which all files of the process share: as large as the open ones need.

    By default it is a twentieth of the machine's memory: 500 MB after 24,000 rows of 4096 px, of no use to anyone.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._reserved = 0
        self._default = 0

    def reserve(self, size: int) -> None:
        """Make room for so many bytes, or give them back (negative)."""
        from rasterio.env import get_gdal_config, set_gdal_config

        with self._lock:
            if not self._reserved:
                self._default = get_gdal_config("GDAL_CACHEMAX")
            self._reserved += size
            set_gdal_config("GDAL_CACHEMAX", min(self._reserved, self._default) if self._reserved else self._default)

    @contextmanager
    def room(self, size: int) -> Iterator[None]:
        """Room for so many bytes inside the with block."""
        self.reserve(size)
        try:
            yield
        finally:
            self.reserve(-size)


BLOCK_CACHE = BlockCache()
