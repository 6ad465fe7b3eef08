"""Jobs: submit a picture, come back for the video. The API has the shape of OpenAI's Videos API.

- `settings`: typed, from a file, the environment and flags.
- `errors`: what a client is told that asked for something impossible.
- `records`, `database`, `store`: jobs and webhooks as rows, and the steps from one state to the next.
- `clock`: the time that all of it goes by.
- `files`: pictures and videos, in a folder or an S3 bucket.
- `upstream`: one job, sent to a server or an edge as any client sends it.
- `pace`, `dispatch`: how many jobs are sent at a time, and which.
- `outside`, `webhooks`: what goes to addresses that clients name.
- `submission`, `limits`: a request, read and checked.
- `api`, `page`, `metrics`, `app`: what answers over HTTP.

Nothing here imports PyTorch, nor any other part of the project: it speaks HTTP to an edge.
"""
