mod archive;
mod tar;
