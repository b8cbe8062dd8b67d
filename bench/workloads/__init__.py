"""What is measured: models and kernels, written once for the frameworks that share PyTorch's names, and again for the others."""
