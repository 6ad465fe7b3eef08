"""What `service.py` needs to put the engine behind HTTP, one request at a time.

- `settings`: typed, from the environment.
- `admission`: the slot and its state machine.
- `connections`, `outermost`, `paths`: what a request meets before BentoML.
- `middleware`: admits, refuses, watches clients and deadlines.
- `uploads`: bodies while they arrive.
- `form`: multipart to a checked request.
- `host`: loads the model and computes.
- `endpoints`, `exchange`, `replies`: what an admitted request gets.
- `marks`: what says in a clip's file that it is made by AI.
- `lifecycle`: start, give up, drain.
- `metrics`, `openapi`, `page`: what others see.
- `logs`, `tracing`: what becomes of one request, line by line and part by part.

Nothing here imports PyTorch before the model is loaded in the background.
"""
