"""Looking at frozen features: labelled images, the features of each, and the vote of the nearest."""
