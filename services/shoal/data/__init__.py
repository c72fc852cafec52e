"""Where samples come from: the catalog of sources, and the sampler that says which sample is due when.

Numpy only: no torch, no gRPC, nothing about workers. Sources are read from the library's own bundled sets and from
files under configured roots; nothing is fetched from a network. What a source imports (numpy, Hugging Face
`datasets`) is imported when it is opened.
"""
