-- Redis has the same id: so neither is used with the other of another deployment.
ALTER TABLE deployment ADD COLUMN id uuid NOT NULL DEFAULT gen_random_uuid();
