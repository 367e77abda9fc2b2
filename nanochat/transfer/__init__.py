"""Files from a hub into the Hugging Face cache: the parts that the child process of a download is made of."""
