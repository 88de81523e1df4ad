"""Training the trials of a plan. The flow, module by module:

schedule        which trials are left, and in which pieces they are handed out
preflight       whose code a run uses; finds what is wrong before anything is trained
session         owns the run: hands pieces to workers, writes what they find
    directory   where the results lie, and whether they may be continued here
    interrupts  Ctrl-C ends a run, but never tears what is being written
    comparisons the solutions of a seed, compared once all of its trials have ended
    view        who watches
pool            hands units to workers, tries again what was lost
backend         where workers run: the one interface
    local       processes of this machine, of one thread each
        nursery where they come from: forks of one process that imports for all of them, or spawned
    ray_cluster, slurm_jobs     actors of Ray, jobs of SLURM
        slurm_settings, slurm_queue     what jobs ask for; what SLURM says of them
        slurm_job, mailbox      what runs in a job; messages as files
        agent   what runs in each: starts a worker process there, and passes on messages
        parcels what is sent there, with its hash
        elsewhere   versions, and what may differ there
    backends    which of them `--on` names
    worker      what such a process imports, and its loop
    messages    what a worker is given, and what it answers
    work        what it does: trains a cohort as far as memory allows, or compares solutions
"""
