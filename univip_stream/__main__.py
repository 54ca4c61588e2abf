"""Makes `python -m univip_stream` the same as `univip-stream`."""

from univip_stream.cli import main

if __name__ == "__main__":
    main()
