"""What a class of device can do, with the evidence for each figure."""
