"""Box formats of other repositories: one file here for each, with its name, filter, reader and writer."""
