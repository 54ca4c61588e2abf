"""Files of boxes that other repositories read or publish: a file here for each, with its name, filter, reader and writer."""
