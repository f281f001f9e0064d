"""DyeFreeNet: virtual contrast CT from plain CT, as a platform on Ray (Liu et al., DyeFreeNet)."""

__version__ = "0.1.0"
