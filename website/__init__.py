"""The site: what `make docs` adds to the pages in docs/, and the check of what it has made."""
