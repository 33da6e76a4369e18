"""What the framework needs to carry the page: mounting, its files, its uploads."""
