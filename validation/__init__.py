"""Evidence: simulation at finite dimension, checks of the theory against it, figures, and the command line."""
