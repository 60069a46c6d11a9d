"""What devices may run: the catalog of artifacts, and the TUF repository that signs releases of them."""
