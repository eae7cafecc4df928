"""Pictures and pages of what came of simulations."""
