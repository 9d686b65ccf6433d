"""Programs as text: what a language's parser and compiler say of them, and problems that programs solve."""
