"""Models at work in a browser: a page and a JSON interface, served from this machine to this machine."""
