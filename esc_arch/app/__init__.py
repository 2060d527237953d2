"""The page that `basicsr app` serves: drop a picture, compare, download. Needs the extra `app`."""
