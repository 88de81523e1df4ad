"""What one step of an optimizer costs on the parameters of a transformer: time, state and memory, one process each.

`sizes` are the networks, `contenders` the optimizers, `worker` measures one of each in a process of its own, `session`
starts them, `result` is the file they end in, `document` the report on it. Importing this package imports no torch.
"""
