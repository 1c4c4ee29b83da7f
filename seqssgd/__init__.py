"""S-SGD: training into flat minima with symmetric weight noise (Sung et al. 2020).

:mod:`seqssgd.optim` has the optimizers, for any loop; :mod:`seqssgd.training` the loop of the recipes.
"""

__version__ = "0.1.0"
