"""Cost of an optimizer's step on the parameters of a transformer: time, state and memory, in separate processes.

`sizes` are the networks, `contenders` the optimizers, `worker` measures one pair in a separate process, `session`
starts workers, `result` is the output file, `document` its report. Importing this package imports no torch.
"""
