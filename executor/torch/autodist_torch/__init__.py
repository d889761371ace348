"""PyTorch as an engine of autodist: trains its plans, and measures what a profile of PyTorch holds."""
