"""Cost of an optimizer's step on the parameters of a transformer: time, state and memory, in separate processes.

`sizes` lists the networks and `contenders` the optimizers; `worker` measures one pair in a separate process, `session`
starts workers, `result` is the output file, `document` its report. Importing this package does not import torch.
"""
