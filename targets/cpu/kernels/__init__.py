"""The loop nests of the CPU target: TIR and the schedules that shape it, one idea a file."""
