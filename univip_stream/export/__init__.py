"""What a run learnt, in the files that other software reads."""
