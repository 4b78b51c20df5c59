"""The compiler: graph, capture, pipeline, artifact, command line."""
