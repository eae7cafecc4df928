"""Reports of simulations: pictures, pages and tables."""
