"""The cost of an optimizer's step on a transformer's parameters: time, state and memory.

`sizes` lists the networks and `contenders` the optimizers. `session` starts a `worker` process for each pair of network
and optimizer. `result` defines the output file, and `document` the report on it. Importing this package does not import
torch.
"""
