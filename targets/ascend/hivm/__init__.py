"""The vendor's synchronised HIVM, run on this machine: memories of their real sizes, every hazard checked."""
