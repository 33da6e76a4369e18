"""What the framework needs to carry the page: mounting, its files, its open streams, its uploads."""
