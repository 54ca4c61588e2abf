"""`python -m univip_stream` is `univip-stream`."""

from univip_stream.cli import main

if __name__ == "__main__":
    main()
