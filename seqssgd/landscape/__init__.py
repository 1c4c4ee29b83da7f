"""How flat a minimum is, and where it lies: curvature, sharpness and surfaces of a loss."""
