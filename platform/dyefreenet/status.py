"""How far a run is, from its folder alone. No Ray."""
