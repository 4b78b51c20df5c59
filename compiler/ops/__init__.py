"""The vocabulary: each op is a name, a type rule and a reference."""
