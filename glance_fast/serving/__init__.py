"""A model that answers over HTTP: ``glance-fast serve``."""
