"""Execution of a plan: the training of its trials and the comparison of solutions. The modules, in order of data flow:

schedule        the remaining trials, and the pieces in which they are given to workers
preflight       the users' code that a run uses; checks that find errors before training
session         owns the run: gives pieces to workers and writes their results
    directory   the directory of a run, and whether a run can be resumed here
    interrupts  Ctrl-C and SIGTERM, which end a run without damaging files that are being written
    comparisons comparisons of one seed's solutions, made once the trials to compare have ended
    view        reports progress
pool            gives units of work to workers, and retries units that were lost
backend         the interface of all backends, which run the workers
    local       processes on this machine, each with one thread
        nursery starts these processes by forking one process that has imported everything, or by spawning
    ray_cluster, slurm_jobs     Ray actors, SLURM jobs
        slurm_settings, slurm_queue     the settings of jobs, and their state in SLURM's queue
        slurm_job, mailbox      a job's main function; messages in files
        agent   runs in an actor or job: starts a worker process there and forwards messages
        parcels the data sent to other machines, with hashes that are checked on arrival
        elsewhere   differences between the main process and a worker on another machine
    backends    the backend that `--on` names
    worker      the imports and the loop of a worker process
    messages    the messages between the main process and workers
    work        processes one unit of work: trains a cohort, if memory suffices, or compares solutions

The *main process* is the one that the user starts; it owns the run directory.
"""
