"""What the commands do, as functions: `univip_stream.mine`, `train`, `evaluate` and `embed`; and the display that they share."""
