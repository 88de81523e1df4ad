"""What `import optbench` offers: the functions of the command line for scripts and notebooks, objects included."""
