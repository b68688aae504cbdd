"""The Triton kernels, one stage a file. Importing one of them loads triton."""
