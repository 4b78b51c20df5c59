"""Schedule search, its measurements, its log and the plan it leaves."""
