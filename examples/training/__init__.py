"""What imagenet.py and segmentation.py share: options, processes, the loop, checkpoints and logs."""
