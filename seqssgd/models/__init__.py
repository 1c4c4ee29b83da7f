"""The models of the papers, as plain modules that need torch alone."""
