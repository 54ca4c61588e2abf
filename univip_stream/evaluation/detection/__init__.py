"""Object detection and instance segmentation with a pre-trained backbone: the paper's Tables 2 to 5, 12 and 13."""
