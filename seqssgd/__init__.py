"""S-SGD: training into flat minima with symmetric weight noise (Sung et al. 2020)."""

__version__ = "0.1.0"
