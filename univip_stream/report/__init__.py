"""Reports for people: pages about shards and runs, figures of one image, and the state of a machine."""
