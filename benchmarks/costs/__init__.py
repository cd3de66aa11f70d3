"""Operations and bytes of every part, and the times that follow from them."""
