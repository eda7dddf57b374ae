"""Reading and writing the weight files of other projects, without PyTorch."""
